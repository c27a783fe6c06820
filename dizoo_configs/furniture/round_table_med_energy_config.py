"""An energy of the demonstrations of round_table_med."""

from dizoo_configs.furniture.builder import energy

main_config, create_config = energy("round_table_med")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/furniture/round_table_med_energy_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
