"""An energy of the demonstrations of avoid_m1, in minutes on two cores."""

from dizoo_configs.avoid.builder import energy

main_config, create_config = energy("avoid_m1")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/avoid/avoid_m1_energy_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
