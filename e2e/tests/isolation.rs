//! What a sandbox on QEMU keeps from others and from its host.

use bouvet_e2e::site::Vmm;

bouvet_e2e::conform_isolation!(Vmm::Qemu);
