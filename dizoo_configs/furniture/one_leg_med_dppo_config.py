"""DPPO from the cloned policy on one_leg_med."""

from dizoo_configs.furniture.builder import dppo

main_config, create_config = dppo("one_leg_med")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/furniture/one_leg_med_dppo_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
