"""DPPO from the cloned policy on kitchen_mixed."""

from dizoo_configs.kitchen.builder import dppo

main_config, create_config = dppo("kitchen_mixed")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/kitchen/kitchen_mixed_dppo_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
