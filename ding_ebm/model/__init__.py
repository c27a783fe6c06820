"""Networks: nn.Modules that know no rewards, optimizers or configs."""
