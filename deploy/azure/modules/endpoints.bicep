// Private endpoints of the four services, and the names by which they are found inside the network.
param location string
param prefix string
param networkId string
param subnetId string
param queueNamespaceId string
param storeAccountId string
param modelsAccountId string
param registryId string

// The zones are those that the public names point to:
// https://learn.microsoft.com/azure/private-link/private-endpoint-dns
var services = [
  {
    name: 'queue'
    id: queueNamespaceId
    group: 'namespace'
    zone: 'privatelink.servicebus.windows.net'
  }
  {
    name: 'store'
    id: storeAccountId
    group: 'Sql'
    zone: 'privatelink.documents.azure.com'
  }
  {
    name: 'models'
    id: modelsAccountId
    group: 'account'
    zone: 'privatelink.openai.azure.com'
  }
  {
    name: 'registry'
    id: registryId
    group: 'registry'
    zone: 'privatelink.azurecr.io'
  }
]

resource zone 'Microsoft.Network/privateDnsZones@2024-06-01' = [
  for service in services: {
    name: service.zone
    location: 'global'
  }
]

resource link 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = [
  for (service, i) in services: {
    parent: zone[i]
    name: prefix
    location: 'global'
    properties: {
      registrationEnabled: false
      virtualNetwork: {
        id: networkId
      }
    }
  }
]

resource endpoint 'Microsoft.Network/privateEndpoints@2024-05-01' = [
  for service in services: {
    name: '${prefix}-${service.name}'
    location: location
    properties: {
      subnet: {
        id: subnetId
      }
      privateLinkServiceConnections: [
        {
          name: service.name
          properties: {
            privateLinkServiceId: service.id
            groupIds: [
              service.group
            ]
          }
        }
      ]
    }
  }
]

resource names 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2024-05-01' = [
  for (service, i) in services: {
    parent: endpoint[i]
    name: 'default'
    properties: {
      privateDnsZoneConfigs: [
        {
          name: service.name
          properties: {
            privateDnsZoneId: zone[i].id
          }
        }
      ]
    }
  }
]
