import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardify.resolution import ResolutionLike, resolution
from train.config import Config, Data, Optim
from train.errors import ConfigError
from train.settings import from_text, from_toml, resolve, settings, to_toml


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        from_text(text, where="my.toml")
    message = str(caught.value)
    assert "\n" not in message
    return message


SIDES = st.integers(1, 4096)


@given(
    res=st.lists(st.tuples(SIDES, SIDES) | SIDES, min_size=1, max_size=4),
    lr=st.floats(1e-9, 10),
    out=st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=20),
    augment=st.booleans(),
)
def test_settings_survive_toml(
    res: list[ResolutionLike], lr: float, out: str, augment: bool
) -> None:
    config = resolve(Config(), {"res": res, "lr": lr, "out": out, "augment": augment})
    assert from_text(to_toml(config)) == config
    assert config.data.res == tuple(map(resolution, res))
    assert (config.optim.lr, config.run.out) == (lr, out)


def test_every_setting_has_help_and_a_name_of_its_own() -> None:
    found = settings()
    assert all(setting.help.endswith(".") for setting in found)
    fields = [f.name for section in dataclasses.fields(Config) for f in _fields(section.name)]
    assert [setting.name for setting in found] == fields


def _fields(section: str) -> tuple["dataclasses.Field[object]", ...]:
    return dataclasses.fields(getattr(Config(), section))


def test_a_file_changes_only_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('[optim]\nlr = 1\n[data]\nres = [64, 256]\nepochs = [10, 5]\nshards = "x"\n')
    config = from_toml(path)
    assert config.optim == Optim(lr=1.0)
    assert config.data == Data(res=(64, 256), epochs=(10, 5), shards="x")
    assert config.run == Config().run


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("[optim]\nlearning_rate = 1", "optim.lr"),
        ("[optim]\nmomentun = 0.9", "optim.momentum"),
        ("[run]\nbatch = 16", "data.batch"),
        ("[data]\nbatch_size = 16", "data.batch"),
        ("[optimiser]\nlr = 1", "optim.lr"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(text: str, nearest: str) -> None:
    message = refusal(text)
    assert message.startswith("my.toml: ")
    assert nearest in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[data]\nbatch = 'x'", "data.batch = 'x': expected a whole number"),
        ("[data]\nbatch = true", "data.batch = True: expected a whole number"),
        ("[data]\nbatch = 0", "--batch 0: expected 1 to 1048576"),
        ("[data]\nbatch = 3000000000", "--batch 3000000000: expected 1 to 1048576"),
        ("[optim]\ngrad_accum = 99999999999999999999", "expected 1 to 1048576"),
        ("[compute]\nthreads = 100000", "--threads 100000: expected 1 to 1024"),
        ("[compute]\ntorch_threads = 3000000000", "expected 0 to 1024"),
        ("[data]\nres = [64, 1.5]", "data.res: resolution 1.5: expected a side in pixels"),
        ("[data]\nres = ['128x']", "data.res: resolution 128x: expected a side in pixels"),
        ("[data]\nepochs = [64, 1.5]", "expected whole numbers"),
        ("[data]\nres = []", "--res ()"),
        ("[data]\nbatch = " + "9" * 5000, "not TOML"),
        ("[data]\nres = " + "[" * 3000, "not TOML"),
        ("[data]\nres = [64, 256]\nepochs = [1, 2, 3]", "one for each of the 2 resolutions"),
        ("[network]\nmodel = 'resnet'", "did you mean resunet?"),
        ("[optim]\nlr = nan", "--lr nan: expected a positive number"),
        ("[optim]\nlr = inf", "--lr inf"),
        (f"[optim]\nlr = 1{'0' * 400}", "optim.lr: the number is too large; expected less"),
        ("[loss]\nloss = 'bce'\nactivation = 'none'", "sigmoid with --loss bce"),
        ("[loss]\ndice_weight = 0\nl1_weight = 0", "--l1-weight above 0"),
        ("[compute]\ndevice = 'tpu'", "--device tpu: expected cpu, cuda"),
        ("[run]\nseed = -1", "--seed -1"),
        ("[run]\nstop_after = -1", "--stop-after -1: expected 0 or more"),
        ("[network]\nfreeze = 'encoder'", "--freeze encoder: expected --init"),
        ("[network]\ninit_partial = true", "--init-partial yes: expected --init"),
        ("[network]\ninit = 'x'\nunfreeze_stage = 2", "expected --freeze encoder with it"),
        (
            "[network]\ninit = 'x'\nfreeze = 'encoder'\nunfreeze_stage = 2",
            "--unfreeze-stage 2: expected a stage of the run, which has 1",
        ),
        ("x = ", "not TOML"),
        ("lr = 1", "optim.lr"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(text: str, says: str) -> None:
    assert says in refusal(text)


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        from_toml(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not TOML"):
        from_toml(tmp_path / "bytes.toml")


def test_one_number_of_epochs_serves_all_stages() -> None:
    assert Data(res=(64, 128), epochs=(3,)).epochs == (3,)
