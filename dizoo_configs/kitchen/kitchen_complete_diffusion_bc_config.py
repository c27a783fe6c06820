"""A cloned diffusion policy on kitchen_complete."""

from dizoo_configs.kitchen.builder import diffusion_bc

main_config, create_config = diffusion_bc("kitchen_complete")

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/kitchen/kitchen_complete_diffusion_bc_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
