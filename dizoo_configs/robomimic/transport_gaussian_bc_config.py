"""A cloned Gaussian policy on transport, with the paper's numbers."""

from dizoo_configs.robomimic.builder import gaussian_bc

main_config, create_config = gaussian_bc("transport")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/robomimic/transport_gaussian_bc_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
