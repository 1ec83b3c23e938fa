"""Run tasks in processes, on a Dask cluster, or here."""
