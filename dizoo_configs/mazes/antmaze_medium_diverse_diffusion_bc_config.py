"""A cloned diffusion policy on antmaze_medium_diverse."""

from dizoo_configs.mazes.builder import diffusion_bc

main_config, create_config = diffusion_bc("antmaze_medium_diverse")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/mazes/antmaze_medium_diverse_diffusion_bc_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
