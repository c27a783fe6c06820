"""QGPO on antmaze_large_diverse."""

from dizoo_configs.mazes.builder import qgpo

main_config, create_config = qgpo("antmaze_large_diverse")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/mazes/antmaze_large_diverse_qgpo_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
