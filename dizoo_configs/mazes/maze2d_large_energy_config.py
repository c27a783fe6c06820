"""An energy of the demonstrations of maze2d_large."""

from dizoo_configs.mazes.builder import energy

main_config, create_config = energy("maze2d_large")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/mazes/maze2d_large_energy_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
