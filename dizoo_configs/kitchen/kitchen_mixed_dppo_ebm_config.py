"""DPPO with a potential of energies on kitchen_mixed."""

from dizoo_configs.kitchen.builder import dppo_ebm

main_config, create_config = dppo_ebm("kitchen_mixed")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/kitchen/kitchen_mixed_dppo_ebm_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
