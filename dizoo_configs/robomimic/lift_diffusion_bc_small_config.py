"""A cloned diffusion policy on lift, in minutes on one core."""

from dizoo_configs.robomimic.builder import diffusion_bc_small

main_config, create_config = diffusion_bc_small("lift")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/robomimic/lift_diffusion_bc_small_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
