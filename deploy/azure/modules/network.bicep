// A network of its own: one subnet for the private endpoints, one for the workers.
param location string
param prefix string
param compute string

// Each way to run containers wants its subnet for itself.
var delegates = {
  none: []
  containerApps: [
    {
      name: 'compute'
      properties: {
        serviceName: 'Microsoft.App/environments'
      }
    }
  ]
  containerInstances: [
    {
      name: 'compute'
      properties: {
        serviceName: 'Microsoft.ContainerInstance/containerGroups'
      }
    }
  ]
  appService: [
    {
      name: 'compute'
      properties: {
        serviceName: 'Microsoft.Web/serverFarms'
      }
    }
  ]
}

// Nothing comes in to the workers; what they reach outside is logs, tokens and package feeds of Azure.
resource guard 'Microsoft.Network/networkSecurityGroups@2024-05-01' = {
  name: '${prefix}-guard'
  location: location
  properties: {
    securityRules: [
      {
        name: 'no-internet-in'
        properties: {
          priority: 4000
          direction: 'Inbound'
          access: 'Deny'
          protocol: '*'
          sourceAddressPrefix: 'Internet'
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRange: '*'
        }
      }
    ]
  }
}

// Networks have no way out of themselves unless it is given.
resource address 'Microsoft.Network/publicIPAddresses@2024-05-01' = {
  name: '${prefix}-out'
  location: location
  sku: {
    name: 'Standard'
  }
  properties: {
    publicIPAllocationMethod: 'Static'
  }
}

resource way 'Microsoft.Network/natGateways@2024-05-01' = {
  name: '${prefix}-out'
  location: location
  sku: {
    name: 'Standard'
  }
  properties: {
    publicIpAddresses: [
      {
        id: address.id
      }
    ]
  }
}

resource network 'Microsoft.Network/virtualNetworks@2024-05-01' = {
  name: '${prefix}-network'
  location: location
  properties: {
    addressSpace: {
      addressPrefixes: [
        '10.42.0.0/16'
      ]
    }
    subnets: [
      {
        name: 'endpoints'
        properties: {
          addressPrefix: '10.42.0.0/24'
          networkSecurityGroup: {
            id: guard.id
          }
        }
      }
      {
        name: 'compute'
        properties: {
          addressPrefix: '10.42.2.0/23'
          delegations: delegates[compute]
          natGateway: {
            id: way.id
          }
          networkSecurityGroup: {
            id: guard.id
          }
        }
      }
    ]
  }
}

output networkId string = network.id
output endpointsSubnetId string = '${network.id}/subnets/endpoints'
output computeSubnetId string = '${network.id}/subnets/compute'
