"""DPPO from the cloned policy on round_table_med."""

from dizoo_configs.furniture.builder import dppo

main_config, create_config = dppo("round_table_med")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/furniture/round_table_med_dppo_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
