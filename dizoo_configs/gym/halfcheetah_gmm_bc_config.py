"""A cloned mixture policy on halfcheetah, with the numbers of the paper's Gaussian one."""

from dizoo_configs.gym.builder import gmm_bc

main_config, create_config = gmm_bc("halfcheetah")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/gym/halfcheetah_gmm_bc_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
