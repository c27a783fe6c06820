"""An energy of the demonstrations of one_leg_med."""

from dizoo_configs.furniture.builder import energy

main_config, create_config = energy("one_leg_med")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/furniture/one_leg_med_energy_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
