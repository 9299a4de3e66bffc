// App Service: Web App for Containers, for those who host there already.
//
// App Service stops what answers on no port, and a worker answers on none. So a stock web server is
// the site, and the worker runs beside it, once for each instance of the plan.
param location string
param prefix string
param image string
param settings array
param workerIdentityId string
param workerClientId string
param workers int
param workspaceId string
param subnetId string

@description('What answers to the platform on port 80.')
param frontImage string = 'mcr.microsoft.com/azurelinux/base/nginx:1'

resource plan 'Microsoft.Web/serverfarms@2024-11-01' = {
  name: '${prefix}-plan'
  location: location
  kind: 'linux'
  sku: {
    name: 'P0v3'
    // Each instance is a worker; the plan's own limit is 30.
    capacity: min(workers, 30)
  }
  properties: {
    reserved: true
  }
}

resource site 'Microsoft.Web/sites@2024-11-01' = {
  name: '${prefix}-worker'
  location: location
  kind: 'app,linux,container'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${workerIdentityId}': {}
    }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    // Nobody has business with the web server but the platform itself.
    publicNetworkAccess: 'Disabled'
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    siteConfig: {
      linuxFxVersion: 'sitecontainers'
      alwaysOn: true
      ftpsState: 'Disabled'
      minTlsVersion: '1.2'
      http20Enabled: true
      vnetRouteAllEnabled: !empty(subnetId)
      appSettings: concat(settings, [
        {
          // From SIGTERM to SIGKILL; longer than `worker.shutdown_grace_seconds` (25).
          name: 'WEBSITES_CONTAINER_STOP_TIME_LIMIT'
          value: '60'
        }
      ])
    }
  }
}

resource front 'Microsoft.Web/sites/sitecontainers@2024-11-01' = {
  parent: site
  name: 'front'
  properties: {
    image: frontImage
    isMain: true
    targetPort: '80'
    authType: 'Anonymous'
    inheritAppSettingsAndConnectionStrings: false
  }
}

resource worker 'Microsoft.Web/sites/sitecontainers@2024-11-01' = {
  parent: site
  name: 'worker'
  properties: {
    image: image
    isMain: false
    authType: 'UserAssigned'
    userManagedIdentityClientId: workerClientId
    inheritAppSettingsAndConnectionStrings: true
  }
}

resource logs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: site
  name: 'logs'
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        category: 'AppServiceConsoleLogs'
        enabled: true
      }
      {
        category: 'AppServicePlatformLogs'
        enabled: true
      }
    ]
  }
}

output siteName string = site.name
