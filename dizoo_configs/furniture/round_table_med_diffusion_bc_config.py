"""A cloned diffusion policy on round_table_med."""

from dizoo_configs.furniture.builder import diffusion_bc

main_config, create_config = diffusion_bc("round_table_med")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/furniture/round_table_med_diffusion_bc_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
