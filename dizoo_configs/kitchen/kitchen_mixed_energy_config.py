"""An energy of the demonstrations of kitchen_mixed."""

from dizoo_configs.kitchen.builder import energy

main_config, create_config = energy("kitchen_mixed")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/kitchen/kitchen_mixed_energy_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
