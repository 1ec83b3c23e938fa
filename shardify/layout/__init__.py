"""From file names to samples: roles, joins, backgrounds, layout files."""
