"""DPPO on transport with rewards shaped by the free energy of the task's energy."""

from dizoo_configs.robomimic.builder import dppo_ebm

main_config, create_config = dppo_ebm("transport")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/robomimic/transport_dppo_ebm_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
