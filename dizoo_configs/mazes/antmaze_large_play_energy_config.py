"""An energy of the demonstrations of antmaze_large_play."""

from dizoo_configs.mazes.builder import energy

main_config, create_config = energy("antmaze_large_play")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/mazes/antmaze_large_play_energy_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
