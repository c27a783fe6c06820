"""QGPO on walker2d medium_expert, in under 45 minutes on two cores."""

from dizoo_configs.gym.builder import qgpo_small

# Why it differs from the other sets: docs/algorithms/qgpo.md, "Where it is hard".
GENTLE = dict(
    policy=dict(
        model=dict(qgpo_critic=dict(alpha=1.0, critic_layer_norm=True)),
        learn=dict(train_epoch=190, guidance_time_exponent=3.0),
        eval=dict(evaluator=dict(eval_freq=190000)),
    )
)

main_config, create_config = qgpo_small("walker2d", "medium_expert", GENTLE)

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/gym/walker2d_medium_expert_qgpo_small_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
