"""From configuration to objects, from run folder to model: what verbs, notebooks and scripts share."""
