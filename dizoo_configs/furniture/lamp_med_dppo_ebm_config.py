"""DPPO with a potential of energies on lamp_med."""

from dizoo_configs.furniture.builder import dppo_ebm

main_config, create_config = dppo_ebm("lamp_med")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/furniture/lamp_med_dppo_ebm_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
