//! layers and volumes: the qcow2 and copy backends.
