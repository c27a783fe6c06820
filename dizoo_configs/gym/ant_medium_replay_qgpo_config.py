"""QGPO on ant medium_replay, with the numbers of the paper."""

from dizoo_configs.gym.builder import qgpo

main_config, create_config = qgpo("ant", "medium_replay")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/gym/ant_medium_replay_qgpo_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
