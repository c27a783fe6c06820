"""DPPO with a potential of energies on antmaze_large_diverse."""

from dizoo_configs.mazes.builder import dppo_ebm

main_config, create_config = dppo_ebm("antmaze_large_diverse")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/mazes/antmaze_large_diverse_dppo_ebm_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
