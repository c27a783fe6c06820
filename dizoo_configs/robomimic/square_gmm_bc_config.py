"""A cloned mixture policy on square, with the paper's numbers."""

from dizoo_configs.robomimic.builder import gmm_bc

main_config, create_config = gmm_bc("square")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/robomimic/square_gmm_bc_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
