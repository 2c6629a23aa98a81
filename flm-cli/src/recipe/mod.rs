pub(crate) mod grow;
