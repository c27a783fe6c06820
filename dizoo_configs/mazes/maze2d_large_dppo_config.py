"""DPPO from the cloned policy on maze2d_large."""

from dizoo_configs.mazes.builder import dppo

main_config, create_config = dppo("maze2d_large")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/mazes/maze2d_large_dppo_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
