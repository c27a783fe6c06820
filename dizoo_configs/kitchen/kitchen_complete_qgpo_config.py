"""QGPO on kitchen_complete."""

from dizoo_configs.kitchen.builder import qgpo

main_config, create_config = qgpo("kitchen_complete")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/kitchen/kitchen_complete_qgpo_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
