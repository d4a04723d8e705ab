"""AutoS: a criterion learnt on one network, tried on other networks and data sets."""
