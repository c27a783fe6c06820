"""DPPO from the cloned policy on antmaze_large_play."""

from dizoo_configs.mazes.builder import dppo

main_config, create_config = dppo("antmaze_large_play")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/mazes/antmaze_large_play_dppo_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
