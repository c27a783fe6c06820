"""DPPO with a potential of energies on avoid_m2, in minutes on two cores."""

from dizoo_configs.avoid.builder import dppo_ebm

main_config, create_config = dppo_ebm("avoid_m2")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/avoid/avoid_m2_dppo_ebm_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
