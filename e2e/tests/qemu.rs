//! The conformance list on QEMU.

use bouvet_e2e::site::{Site, Vmm};

bouvet_e2e::conform!(Site::qemu);
bouvet_e2e::conform_clones!(Vmm::Qemu);
bouvet_e2e::conform_boxes!(Vmm::Qemu);
bouvet_e2e::conform_described!(Vmm::Qemu);
bouvet_e2e::conform_volumes!(Vmm::Qemu);
bouvet_e2e::conform_ports!(Vmm::Qemu);
