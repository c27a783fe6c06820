"""DPPO by five DDIM steps from the cloned policy on avoid_m2, in minutes on two cores."""

from dizoo_configs.avoid.builder import dppo_ddim

main_config, create_config = dppo_ddim("avoid_m2")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/avoid/avoid_m2_dppo_ddim_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
