//! The conformance list on VMs of Firecracker.

use bouvet_e2e::site::{Site, Vmm};

bouvet_e2e::conform!(Site::firecracker);
bouvet_e2e::conform_clones!(Vmm::Firecracker);
bouvet_e2e::conform_boxes!(Vmm::Firecracker);
bouvet_e2e::conform_described!(Vmm::Firecracker);
bouvet_e2e::conform_volumes!(Vmm::Firecracker);
bouvet_e2e::conform_ports!(Vmm::Firecracker);
bouvet_e2e::conform_isolation!(Vmm::Firecracker);
bouvet_e2e::conform_memory!(Vmm::Firecracker);
bouvet_e2e::conform_on!(Vmm::Firecracker; a_jailed_process_sees_its_own_root_directory_alone);
