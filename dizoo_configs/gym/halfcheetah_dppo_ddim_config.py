"""DPPO by five DDIM steps from the cloned policy on halfcheetah, with the paper's numbers."""

from dizoo_configs.gym.builder import dppo_ddim

main_config, create_config = dppo_ddim("halfcheetah")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/gym/halfcheetah_dppo_ddim_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
