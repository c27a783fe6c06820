"""A cloned Gaussian policy on walker2d, with the paper's numbers for hopper and halfcheetah."""

from dizoo_configs.gym.builder import gaussian_bc

main_config, create_config = gaussian_bc("walker2d")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/gym/walker2d_gaussian_bc_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
