"""QGPO on demonstrations of avoid, in a few minutes on two cores: what ``make demo`` trains."""

from dizoo_configs.builder import offline

main_config, create_config = offline(
    "qgpo",
    "ebm_qgpo",
    "avoid",
    "demonstrations",
    dict(
        exp_name="avoid_qgpo_seed0",
        env=dict(evaluator_env_num=50, n_evaluator_episode=50),
        policy=dict(
            model=dict(
                behavior_widths=(128, 64),
                ema_decay=0.999,
                time_scale=1.0,
                qgpo_critic=dict(
                    alpha=30.0,
                    q_alpha=10.0,
                    critic_widths=(128, 128),
                    guidance_widths=(128, 128, 128),
                ),
            ),
            learn=dict(
                train_epoch=33,
                iterations_per_epoch=1000,
                batch_size=512,
                learning_rate=1e-3,
                critic_learning_rate=1e-3,
                guidance_learning_rate=1e-3,
                # An episode is some ninety steps long, and what pays comes at its end.
                discount_factor=0.995,
                target_theta=0.03,
                M=8,
                diffusion_steps=8,
                behavior_policy_stop_training_iter=18000,
                energy_guided_policy_begin_training_iter=28000,
                q_value_stop_training_iter=28000,
                precision="auto",
                learner=dict(hook=dict(log_show_after_iter=1000, save_ckpt_after_iter=11000)),
            ),
            collect=dict(obs_normalization="mean_std", action_normalization="min_max"),
            eval=dict(
                guidance_scale=[1.0, 0.0, 0.5, 2.0, 4.0],
                diffusion_steps=8,
                evaluator=dict(eval_freq=33000),
            ),
        ),
    ),
)

if __name__ == "__main__":
    # or: ding -m serial_offline -c dizoo_configs/avoid/avoid_qgpo_config.py -s 0
    from ding.entry import serial_pipeline_offline

    serial_pipeline_offline((main_config, create_config), seed=0)
