"""DPPO from the cloned policy on transport, with the paper's numbers."""

from dizoo_configs.robomimic.builder import dppo

main_config, create_config = dppo("transport")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/robomimic/transport_dppo_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
