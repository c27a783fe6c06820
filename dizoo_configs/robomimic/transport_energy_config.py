"""An energy of the demonstrations of transport."""

from dizoo_configs.robomimic.builder import energy

main_config, create_config = energy("transport")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/robomimic/transport_energy_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
