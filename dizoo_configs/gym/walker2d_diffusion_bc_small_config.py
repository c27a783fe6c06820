"""A cloned diffusion policy on walker2d, in some minutes on two cores."""

from dizoo_configs.gym.builder import diffusion_bc_small

main_config, create_config = diffusion_bc_small("walker2d")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/gym/walker2d_diffusion_bc_small_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
