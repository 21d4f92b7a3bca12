//! Sandboxes of QEMU at the limits of their memory: `make memory` tries all sizes.

use bouvet_e2e::site::Vmm;

bouvet_e2e::conform_memory!(Vmm::Qemu);
