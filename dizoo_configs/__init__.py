"""Configs that DI-engine runs: ``ding -m serial_offline -c dizoo_configs/<benchmark>/<task>_<algo>_config.py -s 0``."""
