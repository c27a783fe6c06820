"""QGPO on walker2d medium, in an hour on two cores."""

from dizoo_configs.gym.builder import qgpo_small

main_config, create_config = qgpo_small("walker2d", "medium")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/gym/walker2d_medium_qgpo_small_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
