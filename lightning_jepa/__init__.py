"""From a batch to an action: the six modules of an autonomous agent, and the stages that train them."""
