"""An energy of the medium data of ant."""

from dizoo_configs.gym.builder import energy

main_config, create_config = energy("ant")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/gym/ant_energy_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
