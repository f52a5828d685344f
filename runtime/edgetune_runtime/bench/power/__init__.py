"""Energy, temperature and clocks of a measurement, as far as the machine tells them."""
