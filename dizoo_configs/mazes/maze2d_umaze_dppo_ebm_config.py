"""DPPO with a potential of energies on maze2d_umaze."""

from dizoo_configs.mazes.builder import dppo_ebm

main_config, create_config = dppo_ebm("maze2d_umaze")

if __name__ == "__main__":
    # or: ding -m serial_onpolicy -c dizoo_configs/mazes/maze2d_umaze_dppo_ebm_config.py -s 0
    from ding.entry import serial_pipeline_onpolicy

    serial_pipeline_onpolicy((main_config, create_config), seed=0)
